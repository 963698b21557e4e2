// With a canary on every stack frame.
// build: gcc -O2 -fstack-protector-all $FLAGS -o program stack_protector.c
// old: one 1 3.50
// new: two 8 7.25
// switched: value
#include "value.h"
