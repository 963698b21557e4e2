// object: file opened with O_APPEND by two processes
// status: captured
#include "object.h"
#include <fcntl.h>

int main(void) {
    unlink("/run/log");
    int fd = open("/run/log", O_RDWR | O_CREAT | O_APPEND, 0600);
    if (!fork()) {
        int own = open("/run/log", O_WRONLY | O_APPEND);
        for (uint32_t i = 0;; i++) {
            uint32_t line[2] = {1, i};
            if (write(own, line, 8) != 8) _exit(1);
            usleep(1000);
        }
    }
    ready();
    uint32_t count = 0, line[2], next[2] = {0};
    do {
        uint32_t own[2] = {0, count++};
        lseek(fd, 0, SEEK_SET);
        CHECK(write(fd, own, 8) == 8);
    } while (go_on());
    CHECK(fcntl(fd, F_GETFL) & O_APPEND);
    for (off_t at = 0; pread(fd, line, 8, at) == 8; at += 8) {
        CHECK(line[0] < 2);
        CHECK_EQUAL(line[1], next[line[0]]++);
    }
    CHECK_EQUAL(next[0], count);
    PASS();
}
