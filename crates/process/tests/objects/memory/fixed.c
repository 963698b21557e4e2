// object: mappings put over others (`MAP_FIXED`), with and without content
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>

#define P 4096

int main(void) {
    unsigned char *memory = mmap(0, 32 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int fd = open("/proc/self/exe", O_RDONLY);
    CHECK(memory != MAP_FAILED && fd >= 0);
    static unsigned char said[32];
    ready();
    unsigned step = 0;
    do {
        for (int i = 0; i < 4; i++) {
            unsigned page = (step * 3 + i * 9) % 30;
            memory[page * P + 8] = ++said[page];
        }
        unsigned first = step * 7 % 30;
        int flags = MAP_FIXED | MAP_PRIVATE;
        void *there = memory + first * P;
        if (step % 3 == 0) {
            // A page of a file, an empty one, in quick succession.
            CHECK(mmap(there, 2 * P, PROT_READ, flags, fd, 0) == there);
            CHECK(!memcmp(there, "\177ELF", 4));
        }
        if (step % 3 != 2) {
            CHECK(mmap(there, 2 * P, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0) == there);
            said[first] = said[first + 1] = 0;
        }
        step++;
    } while (go_on());
    for (int page = 0; page < 32; page++) CHECK_EQUAL(memory[page * P + 8], said[page]);
    PASS();
}
