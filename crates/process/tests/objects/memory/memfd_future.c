// object: memfd, sealed against future writing, still written through an older mapping
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif

int main(void) {
    int fd = memfd_create("future", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(fd >= 0 && ftruncate(fd, 8 * 4096) == 0);
    volatile uint64_t *memory = mmap(0, 8 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0);
    ready();
    uint64_t step = 0;
    do {
        step++;
        for (int page = 0; page < 8; page++) memory[page * 512] = step + page;
    } while (go_on());
    for (int page = 0; page < 8; page++) {
        uint64_t value;
        CHECK(pread(fd, &value, 8, page * 4096) == 8);
        CHECK_EQUAL(value, step + page);
    }
    CHECK(pwrite(fd, "x", 1, 0) < 0 && errno == EPERM);
    CHECK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
    CHECK_EQUAL(fcntl(fd, F_GET_SEALS), F_SEAL_FUTURE_WRITE);
    PASS();
}
