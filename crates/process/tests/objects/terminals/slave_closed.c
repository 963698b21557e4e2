// object: the master of a pseudo-terminal whose slave everybody has closed, with output left, and opened again later
// status: captured
#include "terminal.h"

int main(void) {
    struct pair pair = open_pair();
    make_raw(pair.slave);
    ready();
    int more;
    do {
        put(pair.slave, "last words", 10);
        close(pair.slave);
        more = go_on();
        expect(pair.master, "last words", 10);
        char byte;
        CHECK_EQUAL(read(pair.master, &byte, 1), -1);
        CHECK_EQUAL(errno, EIO);
        more = go_on() && more;
        CHECK_EQUAL(read(pair.master, &byte, 1), -1);
        CHECK_EQUAL(errno, EIO);
        pair.slave = open(pair.name, O_RDWR | O_NOCTTY);
        CHECK(pair.slave >= 0);
        expect_nothing(pair.master);
    } while (more);
    PASS();
}
