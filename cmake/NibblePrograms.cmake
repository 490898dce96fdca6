# The programs: `nibble`, and the same program under the names and with the output of optimum's scripts.
if(EXISTS ${CMAKE_SOURCE_DIR}/src/cli/main.cpp)
  add_executable(nibble src/cli/main.cpp)
  target_link_libraries(nibble PRIVATE
    nibble_flags nibble_cli nibble_bench nibble_report nibble_models nibble_kernels nibble_ops)
  # The CUDA library, loaded at run time, uses the program's own registry, errors and log.
  set_target_properties(nibble PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin ENABLE_EXPORTS ON)
  if(NIBBLE_WITH_CUDA)
    add_dependencies(nibble nibble_cuda)
  endif()
  foreach(script benchmark_gptq benchmark_bettertransformer benchmark_bettertransformer_vit)
    add_custom_command(TARGET nibble POST_BUILD
      COMMAND ${CMAKE_COMMAND} -E create_symlink nibble ${CMAKE_BINARY_DIR}/bin/${script})
  endforeach()
endif()

# Times each kernel by itself; `ninja bench_kernels_micro` builds it.
add_executable(bench_kernels_micro EXCLUDE_FROM_ALL benchmarks/micro/kernels.cpp)
target_link_libraries(bench_kernels_micro PRIVATE
  nibble_flags nibble_bench nibble_models nibble_kernels nibble_ops CLI11::CLI11 DNNL::dnnl)
set_target_properties(bench_kernels_micro PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
