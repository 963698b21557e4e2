// object: thousands of pages with content, apart from each other, most of them without any access
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096
// Every other page has content: more ranges than one call copies (IOV_MAX, 1,024), and beyond the first thousand none that the
// process itself may read.
#define PAGES 6000
#define READABLE 2048

int main(void) {
    unsigned char *memory = mmap(0, PAGES * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && madvise(memory, PAGES * P, MADV_NOHUGEPAGE) == 0);
    unsigned char said = 0;
    ready();
    do {
        said++;
        CHECK(mprotect(memory, PAGES * P, PROT_READ | PROT_WRITE) == 0);
        for (int page = 0; page < PAGES; page += 2) memory[page * P + page % P] = said + page / 2;
        CHECK(mprotect(memory + READABLE * P, (PAGES - READABLE) * P, PROT_NONE) == 0);
    } while (go_on());
    CHECK(mprotect(memory, PAGES * P, PROT_READ) == 0);
    for (int page = 0; page < PAGES; page += 2) {
        CHECK_EQUAL(memory[page * P + page % P], (unsigned char)(said + page / 2));
        CHECK_EQUAL(memory[(page + 1) * P], 0);
    }
    PASS();
}
