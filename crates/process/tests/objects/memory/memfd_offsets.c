// object: memfd, opened several times: offsets, flags and numbers of their own
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>

int main(void) {
    int fd = memfd_create("offsets", 0);
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int append = open(path, O_WRONLY | O_APPEND | O_CLOEXEC), reading = open(path, O_RDONLY);
    CHECK(fd >= 0 && append >= 0 && reading >= 0);
    CHECK(dup2(reading, 100) == 100 && close(reading) == 0);
    reading = 100;
    ready();
    uint32_t in = 0, out = 0, value;
    do {
        for (int i = 0; i < 3; i++) {
            CHECK(write(append, &in, 4) == 4);
            in++;
        }
        for (int i = 0; i < 2; i++) {
            CHECK(read(reading, &value, 4) == 4);
            CHECK_EQUAL(value, out);
            out++;
        }
        CHECK(lseek(fd, in * 2, SEEK_SET) == in * 2);
    } while (go_on());
    CHECK_EQUAL(lseek(fd, 0, SEEK_CUR), in * 2);
    CHECK_EQUAL(lseek(reading, 0, SEEK_CUR), out * 4);
    CHECK(fcntl(append, F_GETFL) & O_APPEND);
    CHECK(write(reading, "x", 1) < 0 && errno == EBADF);
    CHECK(fcntl(append, F_GETFD) == FD_CLOEXEC && fcntl(reading, F_GETFD) == 0);
    PASS();
}
