// object: the stack, growing deep and unwinding
// status: captured
#include "object.h"

static unsigned deepest;

static unsigned dive(unsigned depth, unsigned seed) {
    volatile unsigned char room[3000];
    for (int i = 0; i < 3000; i += 500) room[i] = seed + depth + i;
    if (depth > deepest) deepest = depth;
    if (depth % 40 == 39) go_on();
    unsigned sum = depth == 0 ? 0 : dive(depth - 1, seed);
    for (int i = 0; i < 3000; i += 500) CHECK_EQUAL(room[i], (unsigned char)(seed + depth + i));
    return sum + 1;
}

int main(void) {
    ready();
    unsigned step = 0;
    do {
        // Up to half a megabyte at first, then more.
        unsigned depth = 100 + step % 20 * 60;
        CHECK_EQUAL(dive(depth, step), depth + 1);
        step++;
    } while (!object_asked);
    PASS();
}
