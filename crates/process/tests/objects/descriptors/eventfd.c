// object: eventfd, as a counter
// status: captured
// note: an eventfd that overflowed is refused
#include "object.h"
#include <sys/eventfd.h>

int main(void) {
    int fd = eventfd(0, EFD_NONBLOCK);
    CHECK(fd >= 0);
    ready();
    uint64_t in = 0, value;
    do {
        value = 3;
        CHECK(write(fd, &value, 8) == 8);
        in += 3;
        if (in > 30) {
            CHECK(read(fd, &value, 8) == 8);
            CHECK_EQUAL(value, in);
            in = 0;
            CHECK(read(fd, &value, 8) < 0 && errno == EAGAIN);
        }
    } while (go_on());
    value = 1;
    CHECK(write(fd, &value, 8) == 8);
    CHECK(read(fd, &value, 8) == 8);
    CHECK_EQUAL(value, in + 1);
    PASS();
}
