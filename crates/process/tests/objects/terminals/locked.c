// object: a pseudo-terminal that is new: its slave locked, and opened by nobody yet
// status: captured
#include "terminal.h"

int main(void) {
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    CHECK(master >= 0);
    int other = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    CHECK(other >= 0 && !unlockpt(other));
    close(master);
    ready();
    // The numbers that are free are so elsewhere.
    while (go_on()) {
        master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
        CHECK(master >= 0);
        unsigned number = 7, second = 7;
        CHECK(!ioctl(master, TIOCGPTN, &number) && !ioctl(other, TIOCGPTN, &second));
        CHECK_EQUAL(number, 0);
        CHECK_EQUAL(second, 1);
        CHECK_EQUAL(open("/dev/pts/0", O_RDWR | O_NOCTTY), -1);
        CHECK_EQUAL(errno, EIO);
        expect_nothing(other);
        go_on();
        CHECK_EQUAL(open("/dev/pts/0", O_RDWR | O_NOCTTY), -1);
        CHECK_EQUAL(errno, EIO);
        close(master);
    }
    PASS();
}
