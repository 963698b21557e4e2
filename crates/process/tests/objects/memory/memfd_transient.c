// object: memfd, written through mappings that last for a moment only
// status: captured
// note: such a file is compared whole at the next checkpoint
#include "object.h"
#include <sys/mman.h>

#define P 4096

int main(void) {
    int fd = memfd_create("transient", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 64 * P) == 0);
    static unsigned char said[64];
    ready();
    unsigned step = 0;
    do {
        // Several in a row, so that some begin and end between two looks.
        for (int i = 0; i < 3; i++) {
            unsigned page = (step * 3 + i * 29) % 62;
            char *memory = mmap(0, 3 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, page * P);
            CHECK(memory != MAP_FAILED);
            for (int at = 0; at < 3; at++) memory[at * P + 7] = ++said[page + at];
            CHECK(munmap(memory, 3 * P) == 0);
        }
        step++;
    } while (go_on());
    for (int page = 0; page < 64; page++) {
        unsigned char byte;
        CHECK(pread(fd, &byte, 1, page * P + 7) == 1);
        CHECK_EQUAL(byte, said[page]);
    }
    PASS();
}
