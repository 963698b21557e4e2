// object: a growing file of a scratch directory, mapped further and further (as databases do)
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>

#define P 4096

int main(void) {
    int fd = open("/tmp/grown", O_RDWR | O_CREAT | O_EXCL, 0600);
    size_t pages = 1;
    CHECK(fd >= 0 && ftruncate(fd, P) == 0);
    uint64_t *memory = mmap(0, P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED);
    ready();
    uint64_t step = 0;
    do {
        step++;
        memory[step % pages * 512] = step;
        memory[(pages - 1) * 512 + 1] = pages;
        if (step % 4 == 0) {
            CHECK(ftruncate(fd, (pages + 3) * P) == 0);
            memory = mremap(memory, pages * P, (pages + 3) * P, MREMAP_MAYMOVE);
            CHECK(memory != MAP_FAILED);
            pages += 3;
        } else if (pages > 60) {
            CHECK(munmap(memory + 512, (pages - 1) * P) == 0 && ftruncate(fd, P) == 0);
            pages = 1;
            memory[1] = 1;
        }
        uint64_t value;
        CHECK(pread(fd, &value, 8, step % pages * P) == 8);
        CHECK_EQUAL(value, memory[step % pages * 512]);
    } while (go_on());
    CHECK_EQUAL(lseek(fd, 0, SEEK_END), pages * P);
    for (size_t page = 0; page < pages; page++) {
        uint64_t values[2];
        CHECK(pread(fd, values, 16, page * P) == 16);
        CHECK_EQUAL(values[0], memory[page * 512]);
        CHECK_EQUAL(values[1], memory[page * 512 + 1]);
    }
    memory[0] = 77;
    uint64_t value;
    CHECK(pread(fd, &value, 8, 0) == 8 && value == 77);
    PASS();
}
