// Functions of unnamed namespaces, overloads, and operators, each with a name of its own to the linker.
// build: g++ -O2 $FLAGS -o program cpp_namespaces.cpp
// old: 1 10 100
// new: 2 20 200
// switched: _ZN12_GLOBAL__N_15valueEi,_ZN12_GLOBAL__N_15valueEd,_ZplRK5MoneyS1_
#include "program.h"

#ifdef FIXED
#define TIMES 2
#else
#define TIMES 1
#endif
struct Money { int cents; };
APART Money operator+(const Money &a, const Money &b) { return {(a.cents + b.cents) * TIMES}; }
namespace {
APART int value(int x) { return x * TIMES; }
APART int value(double x) { return (int)(x * 10) * TIMES; }
}
void answer(char *out, size_t size) {
    volatile int one = 1;
    volatile double other = 1.0;
    snprintf(out, size, "%d %d %d", value(one), value(other), (Money{40} + Money{60}).cents);
}
