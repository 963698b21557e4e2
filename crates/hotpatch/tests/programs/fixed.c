// A program that is loaded where it was linked.
// build: gcc -O2 -fno-pie -no-pie $FLAGS -o program fixed.c
// old: one 1 3.50
// new: two 8 7.25
// switched: value
#include "value.h"
