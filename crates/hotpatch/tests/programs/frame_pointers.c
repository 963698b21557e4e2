// With frame pointers.
// build: gcc -O2 -fno-omit-frame-pointer $FLAGS -o program frame_pointers.c
// old: one 1 3.50
// new: two 8 7.25
// switched: value
#include "value.h"
