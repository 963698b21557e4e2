// object: sparse file that grows and is truncated
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/stat.h>

int main(void) {
    int fd = open("/dev/shm/sparse", O_RDWR | O_CREAT, 0600);
    ready();
    unsigned count = 0;
    off_t size = 0;
    do {
        off_t at = (off_t)(count * 7 % 50) << 20;
        uint32_t value = count + 1;
        CHECK(pwrite(fd, &value, 4, at) == 4);
        if (size < at + 4) size = at + 4;
        if (++count % 20 == 0) {
            size = (off_t)(count % 30) << 20;
            CHECK(!ftruncate(fd, size));
        }
        struct stat stat;
        CHECK(!fstat(fd, &stat));
        CHECK_EQUAL(stat.st_size, size);
        if (at < size) {
            CHECK(pread(fd, &value, 4, at) == 4);
            CHECK_EQUAL(value, count);
        }
        if (at >= 8 && at < size) {
            CHECK(pread(fd, &value, 4, at - 4) == 4);
            CHECK_EQUAL(value, 0);
        }
    } while (go_on());
    PASS();
}
