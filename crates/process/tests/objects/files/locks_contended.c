// object: locks on a file that two processes contend for: record locks
// status: captured
#include "object.h"
#include <fcntl.h>

static int lock(int fd, int kind, int command, off_t at) {
    struct flock range = {.l_type = kind, .l_whence = SEEK_SET, .l_start = at, .l_len = 10};
    return fcntl(fd, command, &range);
}

static void turn(int fd) {
    uint64_t value;
    CHECK(!lock(fd, F_WRLCK, F_SETLKW, 0));
    CHECK(pread(fd, &value, 8, 0) == 8 && value % 2 == 0);
    value++;
    CHECK(pwrite(fd, &value, 8, 0) == 8);
    usleep(300);
    value++;
    CHECK(pwrite(fd, &value, 8, 0) == 8);
    CHECK(!lock(fd, F_UNLCK, F_SETLK, 0));
}

int main(void) {
    int fd = open("/tmp/counter", O_RDWR | O_CREAT, 0600);
    uint64_t zero = 0;
    CHECK(write(fd, &zero, 8) == 8);
    CHECK(!lock(fd, F_WRLCK, F_SETLK, 100));
    if (!fork()) {
        int own = open("/tmp/counter", O_RDWR);
        for (;;) {
            turn(own);
            // Held by the parent for good.
            if (lock(own, F_WRLCK, F_SETLK, 105) == 0) FAIL("a lock of the other process is gone");
            usleep(500);
        }
    }
    ready();
    do turn(fd);
    while (go_on());
    PASS();
}
