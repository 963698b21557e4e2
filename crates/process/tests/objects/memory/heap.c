// object: the heap (`brk`), growing and shrinking
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096

int main(void) {
    unsigned char *base = sbrk(0);
    base += (P - (uintptr_t)base % P) % P;
    CHECK(brk(base) == 0);
    unsigned pages = 0;
    static unsigned char said[200];
    ready();
    unsigned step = 0;
    do {
        unsigned wanted = (step * 37) % 200 + 1;
        CHECK(brk(base + wanted * P) == 0);
        // What it grows by is zero.
        for (unsigned page = pages; page < wanted; page++) {
            CHECK_EQUAL(base[page * P + 1], 0);
            said[page] = 0;
        }
        pages = wanted;
        for (unsigned page = step % 3; page < pages; page += 3) base[page * P + 1] = ++said[page];
        step++;
    } while (go_on());
    CHECK(sbrk(0) == base + pages * P);
    for (unsigned page = 0; page < pages; page++) CHECK_EQUAL(base[page * P + 1], said[page]);
    PASS();
}
