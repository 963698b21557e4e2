// object: pipe of packets (O_DIRECT), with several in it
// status: captured
#include "object.h"
#include <fcntl.h>

int main(void) {
    int ends[2], in = 0, out = 0;
    char text[600], got[600];
    CHECK(!pipe2(ends, O_DIRECT | O_NONBLOCK));
    ready();
    do {
        memset(text, in, sizeof text);
        CHECK(write(ends[1], text, 1 + in % 500) == 1 + in % 500);
        in++;
        if (in - out > 8) {
            CHECK_EQUAL(read(ends[0], got, sizeof got), 1 + out % 500);
            CHECK_EQUAL(got[0], (char)out);
            out++;
        }
    } while (go_on());
    for (; out < in; out++) CHECK_EQUAL(read(ends[0], got, sizeof got), 1 + out % 500);
    CHECK(read(ends[0], got, 1) < 0 && errno == EAGAIN);
    PASS();
}
