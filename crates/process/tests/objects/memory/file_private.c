// object: a private mapping of a file, with pages written to it
// status: captured
// note: the file must be the same on both nodes
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>

#define P 4096

int main(void) {
    int fd = open("/proc/self/exe", O_RDONLY);
    CHECK(fd >= 0);
    unsigned char *own = mmap(0, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    const unsigned char *file = mmap(0, 4 * P, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(own != MAP_FAILED && file != MAP_FAILED);
    close(fd);
    unsigned char said[2] = {own[P + 5], own[3 * P + 5]};
    ready();
    unsigned step = 0;
    do {
        int at = step % 2;
        own[(1 + 2 * at) * P + 5] = ++said[at];
        if (step % 16 == 7) {
            // The file's own content is back.
            CHECK(madvise(own + P, P, MADV_DONTNEED) == 0);
            CHECK_EQUAL(own[P + 5], file[P + 5]);
            said[0] = file[P + 5];
        }
        step++;
    } while (go_on());
    CHECK_EQUAL(own[P + 5], said[0]);
    CHECK_EQUAL(own[3 * P + 5], said[1]);
    own[P + 5] = file[P + 5];
    own[3 * P + 5] = file[3 * P + 5];
    CHECK(!memcmp(own, file, 4 * P));
    PASS();
}
