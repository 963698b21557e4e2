// object: file that was removed while open, and is written
// status: captured
// note: in scratch directories, up to 64 MiB
#include "object.h"
#include <fcntl.h>
#include <sys/stat.h>

int main(void) {
    int fd = open("/tmp/gone", O_RDWR | O_CREAT, 0640);
    int reader = open("/tmp/gone", O_RDONLY);
    CHECK(!unlink("/tmp/gone"));
    ready();
    uint64_t count = 0, got;
    do {
        CHECK(write(fd, &count, 8) == 8);
        CHECK(read(reader, &got, 8) == 8);
        CHECK_EQUAL(got, count);
        count++;
    } while (go_on());
    struct stat stat;
    CHECK(!fstat(fd, &stat));
    CHECK_EQUAL(stat.st_nlink, 0);
    CHECK_EQUAL(stat.st_size, count * 8);
    CHECK_EQUAL(stat.st_mode & 07777, 0640);
    CHECK(pread(fd, &got, 8, 80) == 8 && got == 10);
    PASS();
}
