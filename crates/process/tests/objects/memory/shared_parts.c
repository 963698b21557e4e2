// object: shared anonymous memory, partly unmapped, with different protections, moved by `mremap`
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096

// Two views of one object, which are cut and moved all the time: both must show the same.
int main(void) {
    char *one = mmap(0, 64 * P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(one != MAP_FAILED);
    char *two = mremap(one, 0, 64 * P, MREMAP_MAYMOVE);
    CHECK(two != MAP_FAILED && two != one);
    // The first view is left with pages 16 to 47, of which 20 to 23 cannot be written.
    CHECK(munmap(one, 16 * P) == 0 && munmap(one + 48 * P, 16 * P) == 0);
    CHECK(mprotect(one + 20 * P, 4 * P, PROT_READ) == 0);
    ready();
    unsigned step = 0;
    static unsigned char said[64];
    do {
        step++;
        for (int i = 0; i < 7; i++) {
            unsigned page = (step * 7 + i * 11) % 64;
            said[page]++;
            // The one through the first view, where that can be written.
            char *view = page >= 24 && page < 48 && step % 2 ? one : two;
            view[page * P + page] = said[page];
        }
        if (step % 5 == 0) {
            void *place = mmap(0, 64 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(place != MAP_FAILED);
            two = mremap(two, 64 * P, 64 * P, MREMAP_MAYMOVE | MREMAP_FIXED, place);
            CHECK(two == place);
        }
        for (int page = 16; page < 48; page++)
            CHECK_EQUAL((unsigned char)one[page * P + page], said[page]);
    } while (go_on());
    for (int page = 0; page < 64; page++) CHECK_EQUAL((unsigned char)two[page * P + page], said[page]);
    PASS();
}
