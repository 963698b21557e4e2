// object: memfd, sealed against writing while others are being filled and sealed
// status: captured
// note: seals are set again when everything is in place
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>

#define P 4096

static int make(unsigned number, char **view) {
    int fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(fd >= 0 && ftruncate(fd, 4 * P) == 0);
    char *memory = mmap(0, 4 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED);
    memset(memory, number, 4 * P);
    munmap(memory, 4 * P);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    *view = mmap(0, 4 * P, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(*view != MAP_FAILED);
    return fd;
}

int main(void) {
    int fds[4];
    char *views[4];
    for (int i = 0; i < 4; i++) fds[i] = make(i + 1, &views[i]);
    unsigned number = 4;
    ready();
    do {
        int i = number % 4;
        close(fds[i]);
        munmap(views[i], 4 * P);
        number++;
        fds[i] = make(number, &views[i]);
    } while (go_on());
    for (int i = 0; i < 4; i++) {
        CHECK_EQUAL(fcntl(fds[i], F_GET_SEALS), F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW);
        CHECK(write(fds[i], "x", 1) < 0 && errno == EPERM);
        CHECK(ftruncate(fds[i], P) < 0 && errno == EPERM);
        CHECK(mprotect(views[i], P, PROT_READ | PROT_WRITE) < 0);
        unsigned char last;
        CHECK(pread(fds[i], &last, 1, 4 * P - 1) == 1);
        CHECK_EQUAL((unsigned char)views[i][4 * P - 1], last);
        CHECK_EQUAL(last % 4, i == 3 ? 0 : i + 1);
    }
    PASS();
}
