// object: private memory, each page of which is written and at once emptied by `MADV_DONTNEED`
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096
// None is met again: a page that a copy has wrongly is not put right by being used once more.
#define PAGES (1 << 20)

int main(void) {
    unsigned char *memory = mmap(0, (size_t)PAGES * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    ready();
    size_t next = 0;
    do {
        for (int i = 0; i < 100 && next < PAGES; i++, next++) {
            memory[next * P] = 1;
            CHECK(!madvise(memory + next * P, P, MADV_DONTNEED));
        }
    } while (go_on());
    for (size_t page = 0; page < next; page++)
        if (memory[page * P]) FAIL("page %zu of %zu is there again", page, next);
    PASS();
}
