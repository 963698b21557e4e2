// object: bytes that wait on the slave of a pseudo-terminal in raw mode
// status: captured
#include "terminal.h"

int main(void) {
    struct pair pair = open_pair();
    make_raw(pair.slave);
    char bytes[700];
    for (size_t at = 0; at < sizeof bytes; at++) bytes[at] = (char)(at * 7);
    put(pair.master, bytes, sizeof bytes);
    wait_readable(pair.slave);
    ready();
    size_t first = 0;
    while (go_on()) {
        // Takes some, and adds as many.
        char part[100];
        for (size_t at = 0; at < sizeof part; at++) part[at] = bytes[(first + at) % sizeof bytes];
        expect(pair.slave, part, sizeof part);
        put(pair.master, part, sizeof part);
        first = (first + sizeof part) % sizeof bytes;
    }
    char rest[700];
    for (size_t at = 0; at < sizeof rest; at++) rest[at] = bytes[(first + at) % sizeof bytes];
    expect(pair.slave, rest, sizeof rest);
    expect_nothing(pair.slave);
    expect_nothing(pair.master);
    PASS();
}
