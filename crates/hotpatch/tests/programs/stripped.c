// A program without symbols: the record has them.
// build: gcc -O2 -s $FLAGS -o program stripped.c
// old: one 1 3.50
// new: two 8 7.25
// switched: value
#include "value.h"
