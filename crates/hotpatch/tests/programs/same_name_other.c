// The other file of same_name.c.
static volatile int state = 800;
#ifdef FIXED
static __attribute__((noinline)) int value(void) { return state / 100 + 1; }
#else
static __attribute__((noinline)) int value(void) { return state / 100; }
#endif
int other(void) { return value(); }
int other_state(void) { return state; }
