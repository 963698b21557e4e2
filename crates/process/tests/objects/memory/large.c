// object: more memory than one processor looks at (over 256 MiB), written here and there
// status: captured
#include "object.h"
#include <sys/mman.h>

// Every third page has something in it: more than is taken for little, and 100 MiB in all.
enum { PAGES = 76800, EACH = 3, USED = PAGES / EACH, WRITES = 300 };

static unsigned written[USED];
static unsigned long seed = 88172645463325252;

static unsigned any(void) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed % USED;
}

static unsigned *at(char *memory, unsigned page) { return (unsigned *)(memory + 4096L * EACH * page + page % 1000 * 4); }

int main(void) {
    char *memory = mmap(0, 4096L * PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && !madvise(memory, 4096L * PAGES, MADV_NOHUGEPAGE));
    for (unsigned page = 0; page < USED; page++) *at(memory, page) = page;
    ready();
    double from = now();
    do {
        for (int i = 0; i < WRITES; i++) {
            unsigned page = any();
            ++written[page], ++*at(memory, page);
            page = any();
            CHECK_EQUAL(*at(memory, page), page + written[page]);
        }
        usleep(1000);
    } while (go_on() || now() < from + 0.5);
    for (unsigned page = 0; page < USED; page++) CHECK_EQUAL(*at(memory, page), page + written[page]);
    PASS();
}
