// object: pipe whose writer is gone, with content
// status: captured
#include "object.h"

int main(void) {
    int ends[2];
    char got;
    uint8_t next = 0;
    CHECK(!pipe(ends));
    for (int i = 0; i < 60000; i++) {
        char byte = i;
        CHECK(write(ends[1], &byte, 1) == 1);
        if (i % 15 == 0) CHECK(read(ends[0], &got, 1) == 1 && (uint8_t)got == next++);
    }
    close(ends[1]);
    ready();
    do {
        CHECK(read(ends[0], &got, 1) == 1);
        CHECK_EQUAL((uint8_t)got, next++);
    } while (go_on());
    int left = 0;
    while (read(ends[0], &got, 1) == 1) left++, next++;
    CHECK(left > 10000);
    CHECK_EQUAL(next, (uint8_t)60000);
    PASS();
}
