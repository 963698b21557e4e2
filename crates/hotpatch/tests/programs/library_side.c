// The library of library.c.
static volatile int state = 7;
int kept(void) { return state; }
#ifdef FIXED
static __attribute__((noinline)) int hidden(void) { return kept() - 5; }
int value(void) { return hidden() + 1; }
#else
static __attribute__((noinline)) int hidden(void) { return kept() - 6; }
int value(void) { return hidden(); }
#endif
