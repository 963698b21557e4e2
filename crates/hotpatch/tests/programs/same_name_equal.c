// The other file of equal_statics.c: the same code, but for what it refers to.
static volatile int state = 800;
static __attribute__((noinline)) int value(void) { return state; }
int other(void) { return value(); }
