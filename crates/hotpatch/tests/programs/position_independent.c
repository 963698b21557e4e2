// Calls by way of addresses, without a linkage table.
// build: gcc -O2 -fPIC -pie -fno-plt $FLAGS -o program position_independent.c
// old: one 1 3.50
// new: two 8 7.25
// switched: value
#include "value.h"
