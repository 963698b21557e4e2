// object: private anonymous memory, while it is written
// status: captured
// note: userfaultfd and PAGEMAP_SCAN
#include "object.h"
#include <sys/mman.h>

#define PAGES 512

int main(void) {
    unsigned char *memory = mmap(0, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    static unsigned expected[PAGES];
    CHECK(memory != MAP_FAILED);
    ready();
    unsigned step = 0;
    do {
        for (int i = 0; i < 8; i++) {
            unsigned page = (step * 7 + i * 31) % PAGES;
            expected[page]++;
            memory[page * 4096 + page % 4096] = expected[page];
        }
        step++;
    } while (go_on());
    for (unsigned page = 0; page < PAGES; page++)
        CHECK_EQUAL(memory[page * 4096 + page % 4096], (unsigned char)expected[page]);
    PASS();
}
