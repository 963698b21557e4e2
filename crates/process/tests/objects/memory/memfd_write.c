// object: memfd, written through its descriptor
// status: captured
// note: name, size, offset, flags and content; huge pages are hidden
#include "object.h"
#include <sys/mman.h>
#include <sys/stat.h>

int main(void) {
    int fd = memfd_create("numbers", MFD_CLOEXEC);
    CHECK(fd >= 0);
    int copy = dup(fd);
    CHECK(copy >= 0);
    ready();
    uint64_t count = 0;
    do {
        CHECK(write(count % 2 ? fd : copy, &count, 8) == 8);
        count++;
        CHECK_EQUAL(lseek(fd, 0, SEEK_CUR), count * 8);
    } while (go_on());
    struct stat stat;
    CHECK(fstat(fd, &stat) == 0);
    CHECK_EQUAL(stat.st_size, count * 8);
    for (uint64_t at = 0, value; at < count; at++) {
        CHECK(pread(fd, &value, 8, at * 8) == 8);
        CHECK_EQUAL(value, at);
    }
    char path[64], name[64] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    CHECK(readlink(path, name, sizeof name - 1) > 0);
    CHECK(!strcmp(name, "/memfd:numbers (deleted)"));
    PASS();
}
