// Without optimisation.
// build: gcc -O2 -O0 $FLAGS -o program unoptimised.c
// old: one 1 3.50
// new: two 8 7.25
// switched: value
#include "value.h"
