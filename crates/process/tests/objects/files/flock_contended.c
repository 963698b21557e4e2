// object: locks on a file that two processes contend for: `flock`
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/file.h>

static void turn(int fd) {
    uint64_t value;
    CHECK(!flock(fd, LOCK_EX));
    CHECK(pread(fd, &value, 8, 0) == 8 && value % 2 == 0);
    value++;
    CHECK(pwrite(fd, &value, 8, 0) == 8);
    usleep(300);
    value++;
    CHECK(pwrite(fd, &value, 8, 0) == 8);
    CHECK(!flock(fd, LOCK_UN));
}

int main(void) {
    int fd = open("/run/counter", O_RDWR | O_CREAT, 0600), held = open("/run/held", O_RDWR | O_CREAT, 0600);
    uint64_t zero = 0;
    CHECK(write(fd, &zero, 8) == 8);
    CHECK(!flock(held, LOCK_EX));
    if (!fork()) {
        int own = open("/run/counter", O_RDWR), other = open("/run/held", O_RDWR);
        for (;;) {
            turn(own);
            if (!flock(other, LOCK_EX | LOCK_NB)) FAIL("a lock of the other process is gone");
            usleep(500);
        }
    }
    ready();
    do turn(fd);
    while (go_on());
    PASS();
}
