// object: memfd with an owner and a mode of its own
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

int main(void) {
    int fd = memfd_create("owned", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 8192) == 0 && fchown(fd, 65534, 65533) == 0 && fchmod(fd, 0640) == 0);
    volatile uint64_t *one = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    volatile uint64_t *two = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(one != MAP_FAILED && two != MAP_FAILED);
    uint64_t step = 0;
    ready();
    do {
        step++;
        one[step % 1024] = two[step % 1024] = step;
    } while (go_on());
    struct stat stat;
    CHECK(fstat(fd, &stat) == 0);
    CHECK_EQUAL(stat.st_uid, 65534);
    CHECK_EQUAL(stat.st_gid, 65533);
    CHECK_EQUAL(stat.st_mode & 0777, 0640);
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    CHECK(open(path, O_RDWR) >= 0);
    CHECK_EQUAL(one[step % 1024], step);
    CHECK_EQUAL(two[step % 1024], step);
    PASS();
}
