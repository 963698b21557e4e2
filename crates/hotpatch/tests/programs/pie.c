// A program that is loaded anywhere.
// build: gcc -O2 -fPIE -pie $FLAGS -o program pie.c
// old: one 1 3.50
// new: two 8 7.25
// switched: value
#include "value.h"
