// object: locks of an open file description (F_OFD_SETLK), moved along a file
// status: captured
#include "object.h"
#include <fcntl.h>

static int lock(int fd, int kind, off_t at, off_t length) {
    struct flock range = {.l_type = kind, .l_whence = SEEK_SET, .l_start = at, .l_len = length};
    return fcntl(fd, F_OFD_SETLK, &range);
}

int main(void) {
    int one = open("/tmp/locked", O_RDWR | O_CREAT, 0600), two = open("/tmp/locked", O_RDWR);
    off_t at = 0;
    CHECK(!lock(one, F_WRLCK, 0, 10));
    ready();
    do {
        CHECK(lock(two, F_RDLCK, at + 9, 1) < 0 && errno == EAGAIN);
        CHECK(!lock(two, F_RDLCK, at + 10, 1));
        CHECK(!lock(two, F_UNLCK, at + 10, 1));
        CHECK(!lock(one, F_WRLCK, at + 10, 10));
        CHECK(!lock(one, F_UNLCK, at, 10));
        CHECK(!lock(two, F_WRLCK, at, 10));
        CHECK(!lock(two, F_UNLCK, at, 10));
        at += 10;
    } while (go_on());
    PASS();
}
