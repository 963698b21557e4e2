// With much of it.
// build: gcc -O2 -O3 -march=x86-64-v2 $FLAGS -o program optimised.c
// old: one 1 3.50
// new: two 8 7.25
// switched: value
#include "value.h"
