// object: memory given back for later (`MADV_FREE`), and used again
// status: captured
// note: what was given back and not written since is zero on the copy
#include "object.h"
#include <sys/mman.h>

#define P 4096

int main(void) {
    unsigned char *memory = mmap(0, 256 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    static unsigned char said[256], free_now[256];
    ready();
    unsigned step = 0;
    do {
        for (int i = 0; i < 10; i++) {
            unsigned page = (step * 31 + i * 7) % 256;
            memory[page * P + 1] = ++said[page];
            memory[page * P + 2] = page;
            free_now[page] = 0;
        }
        unsigned first = step * 37 % 250;
        CHECK(madvise(memory + first * P, 6 * P, MADV_FREE) == 0);
        memset(free_now + first, 1, 6);
        step++;
    } while (go_on());
    for (int page = 0; page < 256; page++) {
        unsigned char now = memory[page * P + 1];
        if (!free_now[page]) CHECK_EQUAL(now, said[page]);
        else CHECK(now == 0 || now == said[page]);
    }
    PASS();
}
