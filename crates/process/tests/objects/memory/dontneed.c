// object: private memory, emptied by `MADV_DONTNEED` in small and large pieces
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096
#define PAGES 2048

int main(void) {
    unsigned char *memory = mmap(0, PAGES * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    static unsigned char said[PAGES];
    for (int page = 0; page < PAGES; page++) memory[page * P] = said[page] = 1;
    ready();
    unsigned step = 0;
    do {
        for (int i = 0; i < 20; i++) {
            unsigned page = (step * 31 + i * 97) % PAGES;
            memory[page * P] = ++said[page];
        }
        // Sometimes whole page tables go.
        unsigned first = step * 131 % PAGES, count = step % 9 == 0 ? 1100 : step % 5 + 1;
        if (first + count > PAGES) count = PAGES - first;
        CHECK(madvise(memory + first * P, count * P, MADV_DONTNEED) == 0);
        memset(said + first, 0, count);
        if (count > 600) memory[(first + 550) * P] = said[first + 550] = 9;
        step++;
    } while (go_on());
    for (int page = 0; page < PAGES; page++) CHECK_EQUAL(memory[page * P], said[page]);
    PASS();
}
