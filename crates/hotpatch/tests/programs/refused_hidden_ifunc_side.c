// The library of refused_hidden_ifunc.c.
__attribute__((visibility("hidden"))) int chosen(void);
#ifdef FIXED
int value(void) { return chosen() + 1; }
#else
int value(void) { return chosen(); }
#endif
