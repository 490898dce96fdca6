# tests/fuzz/NAME_fuzz.cpp becomes the program fuzz_NAME: libFuzzer's main around LLVMFuzzerTestOneInput. Seeds are the
# files of tests/fuzz/corpus/NAME; tools/fuzz.sh runs each for a given time.
# They link the formats, and what a target's own line here adds.
set(NIBBLE_FUZZ_LIBS_image nibble_inputs)
set(NIBBLE_FUZZ_LIBS_sound nibble_inputs)
set(NIBBLE_FUZZ_LIBS_model_config nibble_models nibble_kernels nibble_ops)

file(GLOB fuzz_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/fuzz/*_fuzz.cpp)
foreach(source ${fuzz_sources})
  get_filename_component(name ${source} NAME_WE)
  string(REGEX REPLACE "_fuzz$" "" name ${name})
  add_executable(fuzz_${name} ${source})
  target_include_directories(fuzz_${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(fuzz_${name} PRIVATE nibble_flags nibble_formats ${NIBBLE_FUZZ_LIBS_${name}})
  target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
  list(APPEND fuzz_targets fuzz_${name})
endforeach()
add_custom_target(fuzz_all DEPENDS ${fuzz_targets})
