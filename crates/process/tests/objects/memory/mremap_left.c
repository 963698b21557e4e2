// object: private memory moved by `mremap` that leaves an empty mapping behind (`MREMAP_DONTUNMAP`)
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096

int main(void) {
    unsigned char *here = mmap(0, 16 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *there = mmap(0, 16 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(here != MAP_FAILED && there != MAP_FAILED);
    ready();
    unsigned char step = 0;
    do {
        step++;
        for (int page = 0; page < 16; page++) here[page * P] = step + page;
        go_on();
        int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
        CHECK(mremap(here, 16 * P, 16 * P, flags, there) == there);
        go_on();
        for (int page = 0; page < 16; page++) {
            CHECK_EQUAL(there[page * P], (unsigned char)(step + page));
            CHECK_EQUAL(here[page * P], 0);
        }
    } while (!object_asked);
    PASS();
}
