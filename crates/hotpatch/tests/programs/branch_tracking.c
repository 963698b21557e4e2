// Entries that begin with endbr64.
// build: gcc -O2 -fcf-protection=full $FLAGS -o program branch_tracking.c
// old: one 1 3.50
// new: two 8 7.25
// switched: value
#include "value.h"
