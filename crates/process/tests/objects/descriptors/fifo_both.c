// object: named pipe, opened for reading and writing, with content
// status: captured
// note: in scratch directories
#include "object.h"
#include <fcntl.h>
#include <sys/stat.h>

int main(void) {
    CHECK(!mkfifo("/tmp/fifo", 0600));
    int fd = open("/tmp/fifo", O_RDWR | O_NONBLOCK);
    CHECK(fd >= 0);
    ready();
    unsigned in = 0, out = 0;
    do {
        for (int i = 0; i < 50; i++, in++) CHECK(write(fd, &in, 4) == 4);
        while (in - out > 300) {
            unsigned got;
            CHECK(read(fd, &got, 4) == 4);
            CHECK_EQUAL(got, out++);
        }
    } while (go_on());
    for (unsigned got; out < in; out++) {
        CHECK(read(fd, &got, 4) == 4);
        CHECK_EQUAL(got, out);
    }
    CHECK(read(fd, &in, 4) < 0 && errno == EAGAIN);
    PASS();
}
