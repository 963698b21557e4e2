// The library of parts.c.
#ifdef FIXED
int value(void) { return 3; }
#else
int value(void) { return 1; }
#endif
