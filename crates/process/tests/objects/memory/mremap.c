// object: private memory, grown, shrunk and moved by `mremap`
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096

int main(void) {
    unsigned pages = 10;
    unsigned char *memory = mmap(0, pages * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    static unsigned char said[100];
    ready();
    unsigned step = 0;
    do {
        unsigned wanted = step * 31 % 90 + 5;
        if (step % 4 == 0) {
            // Shrinks and grows again at once: what is cut off comes back empty.
            unsigned char *cut = mremap(memory, pages * P, (pages / 2) * P, 0);
            CHECK(cut == memory);
            memset(said + pages / 2, 0, pages - pages / 2);
            memory = mremap(memory, pages / 2 * P, pages * P, MREMAP_MAYMOVE);
            CHECK(memory != MAP_FAILED);
        } else {
            memory = mremap(memory, pages * P, wanted * P, MREMAP_MAYMOVE);
            CHECK(memory != MAP_FAILED);
            if (wanted < pages) memset(said + wanted, 0, pages - wanted);
            pages = wanted;
        }
        for (unsigned page = step % 2; page < pages; page += 2) memory[page * P + 3] = ++said[page];
        for (unsigned page = 0; page < pages; page++) CHECK_EQUAL(memory[page * P + 3], said[page]);
        step++;
    } while (go_on());
    PASS();
}
