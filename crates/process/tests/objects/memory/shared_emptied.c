// object: shared anonymous memory, emptied by `MADV_REMOVE`, let go by `MADV_DONTNEED`
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096

int main(void) {
    unsigned char *memory = mmap(0, 64 * P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    static unsigned char said[64];
    ready();
    unsigned step = 0;
    do {
        unsigned first = step * 5 % 60;
        for (unsigned page = first; page < first + 4; page++) memory[page * P + 1] = ++said[page];
        // The content stays.
        CHECK(madvise(memory + first * P, 4 * P, MADV_DONTNEED) == 0);
        if (step % 4 == 0) {
            unsigned gone = step * 7 % 60;
            CHECK(madvise(memory + gone * P, 2 * P, MADV_REMOVE) == 0);
            said[gone] = said[gone + 1] = 0;
        }
        step++;
    } while (go_on());
    for (int page = 0; page < 64; page++) CHECK_EQUAL(memory[page * P + 1], said[page]);
    PASS();
}
