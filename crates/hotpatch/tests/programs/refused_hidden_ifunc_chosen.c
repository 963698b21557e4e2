// What refused_hidden_ifunc.c has from elsewhere.
static int first(void) { return 7; }
static void *choose(void) { return (void *)first; }
__attribute__((visibility("hidden"), ifunc("choose"))) int chosen(void);
