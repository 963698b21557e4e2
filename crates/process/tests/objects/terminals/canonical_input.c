// object: lines, an end of file and a line begun that wait on the slave of a pseudo-terminal in canonical mode
// status: captured
#include "terminal.h"

int main(void) {
    struct pair pair = open_pair();
    set_local(pair.slave, ECHO, 0);
    ready();
    unsigned round = 0;
    for (;;) {
        char line[64];
        int length = snprintf(line, sizeof line, "line %u\n", round++);
        put(pair.master, line, length);
        put(pair.master, "end\x04", 4);
        put(pair.master, "\x04", 1);
        // Quoted characters, and one that is erased later.
        put(pair.master, "a\x16\x03z\x16\nq", 7);
        wait_readable(pair.slave);
        int more = go_on();
        put(pair.master, "\x7f" "c\n", 3);
        expect_read(pair.slave, line, length);
        expect_read(pair.slave, "end", 3);
        expect_read(pair.slave, "", 0);
        expect_read(pair.slave, "a\x03z\nc\n", 6);
        expect_nothing(pair.slave);
        if (!more) break;
    }
    PASS();
}
