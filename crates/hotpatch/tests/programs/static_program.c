// A program without a dynamic linker.
// build: gcc -O2 -static $FLAGS -o program static_program.c
// old: one 1 3.50
// new: two 8 7.25
// switched: value
#include "value.h"
