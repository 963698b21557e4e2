// object: memfd, mapped with its descriptor closed
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096

int main(void) {
    int fd = memfd_create("closed", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 32 * P) == 0);
    char *shared = mmap(0, 32 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *later = mmap(0, 16 * P, PROT_READ, MAP_SHARED, fd, 16 * P);
    CHECK(shared != MAP_FAILED && later != MAP_FAILED);
    close(fd);
    ready();
    static unsigned char said[32];
    unsigned step = 0;
    do {
        unsigned page = step++ * 5 % 32;
        shared[page * P + 9] = ++said[page];
    } while (go_on());
    for (int page = 0; page < 32; page++) {
        CHECK_EQUAL((unsigned char)shared[page * P + 9], said[page]);
        if (page >= 16) CHECK_EQUAL((unsigned char)later[(page - 16) * P + 9], said[page]);
    }
    shared[31 * P] = 'x';
    CHECK_EQUAL(later[15 * P], 'x');
    PASS();
}
