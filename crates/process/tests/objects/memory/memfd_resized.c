// object: memfd, growing, shrinking, with holes punched
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define P 4096

int main(void) {
    static char model[64 * P], read_back[64 * P];
    int fd = memfd_create("resized", MFD_CLOEXEC);
    CHECK(fd >= 0);
    size_t size = 0;
    ready();
    unsigned step = 0;
    do {
        step++;
        size_t wanted = (step * 7919) % (60 * P) + 100;
        CHECK(ftruncate(fd, wanted) == 0);
        if (wanted < size) memset(model + wanted, 0, size - wanted);
        size = wanted;
        size_t at = (step * 4801) % (size - 50);
        memset(model + at, step, 50);
        CHECK(pwrite(fd, model + at, 50, at) == 50);
        if (step % 3 == 0 && size > 4 * P) {
            CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, P, 2 * P + 10) == 0);
            memset(model + P, 0, 2 * P + 10);
        }
        CHECK(pread(fd, read_back, sizeof read_back, 0) == (ssize_t)size);
        CHECK(!memcmp(model, read_back, size));
    } while (go_on());
    struct stat stat;
    CHECK(fstat(fd, &stat) == 0);
    CHECK_EQUAL(stat.st_size, size);
    CHECK(pread(fd, read_back, sizeof read_back, 0) == (ssize_t)size);
    CHECK(!memcmp(model, read_back, size));
    PASS();
}
